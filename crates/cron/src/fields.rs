//! The five fields as Cloudflare writes them, turned into plain lists of numbers that every cron library reads alike.
//!
//! Owns: the grammar and the error texts. Must not: know calendars, but for the lengths of months.
//!
//! ```text
//! field    values                    special
//! minute   0-59                      * , - /
//! hour     0-23                      * , - /
//! day      1-31                      * , - /   L  LW  nW
//! month    1-12 or JAN-DEC           * , - /
//! weekday  1-7 or SUN-SAT, 1 = SUN   * , - /   nL  n#k
//! ```
//! `a/s` steps from `a` to the field's end. L, W and # stand alone, not in lists.

const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
/// In a leap year.
const MONTH_LENGTHS: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// One field's rules.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// Names of the values from `min` on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field {
    name: "minute",
    min: 0,
    max: 59,
    names: &[],
};
const HOUR: Field = Field {
    name: "hour",
    min: 0,
    max: 23,
    names: &[],
};
const DAY: Field = Field {
    name: "day of month",
    min: 1,
    max: 31,
    names: &[],
};
const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    names: &MONTHS,
};
const WEEKDAY: Field = Field {
    name: "weekday",
    min: 1,
    max: 7,
    names: &WEEKDAYS,
};

/// The expression with names, ranges, steps and Cloudflare's weekday numbers resolved: lists of numbers, `*`, and L, LW, nW, n#L and
/// n#k, with weekdays from 0 = Sunday. The error names the field and the mistake.
pub(crate) fn plain(expression: &str) -> Result<String, String> {
    let upper = expression.to_ascii_uppercase();
    let fields: Vec<&str> = upper.split_ascii_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else {
        return Err(format!(
            "it has {} fields; there must be five: minute, hour, day of month, month, weekday (UTC)",
            fields.len()
        ));
    };
    let minute = MINUTE.list(minute)?;
    let hour = HOUR.list(hour)?;
    let days = days(day)?;
    let months = MONTH.list(month)?;
    let weekdays = weekdays(weekday)?;
    if let (Days::List(days), None, Some(months)) = (&days, &weekdays, &months) {
        let longest = months
            .iter()
            .filter_map(|m| MONTH_LENGTHS.get(*m as usize - 1))
            .max();
        if days.iter().min() > longest {
            return Err("no such day ever comes in these months".to_owned());
        }
    }
    let day = match days {
        Days::Any => "*".to_owned(),
        Days::List(list) => join(&list),
        Days::Special(text) => text,
    };
    let star = |list: Option<Vec<u32>>| list.map_or_else(|| "*".to_owned(), |l| join(&l));
    Ok(format!(
        "{} {} {day} {} {}",
        star(minute),
        star(hour),
        star(months),
        weekdays.unwrap_or_else(|| "*".to_owned())
    ))
}

fn join(list: &[u32]) -> String {
    let numbers: Vec<String> = list.iter().map(u32::to_string).collect();
    numbers.join(",")
}

enum Days {
    Any,
    List(Vec<u32>),
    Special(String),
}

fn days(text: &str) -> Result<Days, String> {
    if text == "L" || text == "LW" {
        return Ok(Days::Special(text.to_owned()));
    }
    if text.starts_with('L') {
        return Err(format!(
            "\"{text}\" in the day of month field: days counted back from the last one are not supported; only L and LW are"
        ));
    }
    if let Some(day) = text.strip_suffix('W') {
        return Ok(Days::Special(format!("{}W", DAY.value(day)?)));
    }
    Ok(DAY.list(text)?.map_or(Days::Any, Days::List))
}

fn weekdays(text: &str) -> Result<Option<String>, String> {
    if let Some((day, nth)) = text.split_once('#') {
        let day = WEEKDAY.value(day)? - 1;
        return match nth.parse::<u32>() {
            Ok(n @ 1..=5) => Ok(Some(format!("{day}#{n}"))),
            _ => Err(format!(
                "\"{text}\" in the weekday field: after # comes a number from 1 to 5"
            )),
        };
    }
    if let Some(day) = text.strip_suffix('L') {
        // Without a day it is the last day of the week.
        let day = if day.is_empty() {
            WEEKDAY.max
        } else {
            WEEKDAY.value(day)?
        };
        return Ok(Some(if text == "L" {
            (day - 1).to_string()
        } else {
            format!("{}#L", day - 1)
        }));
    }
    Ok(WEEKDAY.list(text)?.map(|list| {
        let from_zero: Vec<u32> = list.iter().map(|day| day - 1).collect();
        join(&from_zero)
    }))
}

impl Field {
    /// The values of a list, sorted; `None` for `*`.
    fn list(&self, text: &str) -> Result<Option<Vec<u32>>, String> {
        if text == "*" {
            return Ok(None);
        }
        let mut values = Vec::new();
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(self.step(step)?)),
                None => (part, None),
            };
            let (first, last) = if range == "*" {
                (self.min, self.max)
            } else if let Some((first, last)) = range.split_once('-') {
                (self.value(first)?, self.value(last)?)
            } else {
                let first = self.value(range)?;
                (first, step.map_or(first, |_| self.max))
            };
            if first > last {
                return Err(format!(
                    "\"{part}\" in the {} field: the range goes backwards",
                    self.name
                ));
            }
            let step = usize::try_from(step.unwrap_or(1)).unwrap_or(1);
            values.extend((first..=last).step_by(step));
        }
        values.sort_unstable();
        values.dedup();
        Ok(Some(values))
    }

    fn step(&self, text: &str) -> Result<u32, String> {
        let most = self.max - self.min;
        match text.parse::<u32>() {
            Ok(step) if (1..=most).contains(&step) => Ok(step),
            _ => Err(format!(
                "\"/{text}\" in the {} field: a step is a number from 1 to {most}",
                self.name
            )),
        }
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        if let Some(position) = self.names.iter().position(|name| *name == text) {
            return Ok(self.min + u32::try_from(position).unwrap_or(0));
        }
        // `parse` would take a plus sign.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u32>() {
            Ok(value) if digits && (self.min..=self.max).contains(&value) => Ok(value),
            _ => {
                let names = match (self.names.first(), self.names.last()) {
                    (Some(first), Some(last)) => format!(" or {first} to {last}"),
                    _ => String::new(),
                };
                let hint = if self.names.len() == 7 {
                    " (1 is Sunday)"
                } else {
                    ""
                };
                Err(format!(
                    "\"{text}\" in the {} field: a value is a number from {} to {}{names}{hint}",
                    self.name, self.min, self.max
                ))
            }
        }
    }
}
