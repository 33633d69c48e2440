//! `--chmod`: octal modes, and symbolic ones as chmod(1) has them (`u+x,go-w`, `a=rX`, `g=u`). Pure.

/// A change of a file's mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chmod {
    /// This mode, whatever it was.
    Octal(u32),
    /// These, one after the other.
    Symbolic(Vec<Change>),
}

/// `go+rw`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bits that may change: those of the named classes, with their set-id bits.
    who: u32,
    operator: Operator,
    /// `r`, `w`, `x`, `s` and `t`, for every class.
    bits: u32,
    /// `X`: `x`, but for files that nobody may execute.
    search: bool,
    /// `u`, `g`, `o`: classes whose bits are taken, as numbers of places to shift them down.
    from: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

const SET_IDS: u32 = 0o6000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

impl Chmod {
    /// Reads it.
    ///
    /// # Errors
    /// Names the mistake, for a person.
    pub(crate) fn parse(text: &str) -> Result<Chmod, String> {
        let wrong = || {
            format!("--chmod={text}: a mode is octal, as 755, up to 7777, or symbolic, as u+x,go-w")
        };
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(Chmod::Octal(mode)),
                _ => Err(wrong()),
            };
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let operators = ['+', '-', '='];
            let start = clause.find(operators).ok_or_else(wrong)?;
            let (classes, mut rest) = clause.split_at(start);
            let mut who = 0;
            for class in classes.chars() {
                who |= match class {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o0007,
                    'a' => 0o6777,
                    _ => return Err(wrong()),
                };
            }
            if who == 0 {
                who = 0o6777;
            }
            // Each operator with what follows it: `u+x-w`.
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..].find(operators).map_or(rest.len(), |at| at + 1);
                let change = Change::parse(who, operator, &rest[1..end]).ok_or_else(wrong)?;
                changes.push(change);
                rest = &rest[end..];
            }
        }
        Ok(Chmod::Symbolic(changes))
    }

    /// The mode of a file or directory that had this one.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        match self {
            Chmod::Octal(octal) => *octal,
            Chmod::Symbolic(changes) => {
                let search = is_dir || mode & EXECUTE != 0;
                let changed = changes.iter();
                changed.fold(mode & 0o7777, |mode, change| change.apply(mode, search))
            }
        }
    }
}

impl Change {
    fn parse(who: u32, operator: char, what: &str) -> Option<Change> {
        let operator = match operator {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            _ => Operator::Set,
        };
        let mut change = Change {
            who,
            operator,
            bits: 0,
            search: false,
            from: Vec::new(),
        };
        for c in what.chars() {
            match c {
                'r' => change.bits |= 0o444,
                'w' => change.bits |= 0o222,
                'x' => change.bits |= EXECUTE,
                's' => change.bits |= SET_IDS,
                // It belongs to no class, but is not others' alone.
                't' if who & !0o007 != 0 => {
                    change.bits |= STICKY;
                    change.who |= STICKY;
                }
                't' => {}
                'X' => change.search = true,
                'u' => change.from.push(6),
                'g' => change.from.push(3),
                'o' => change.from.push(0),
                _ => return None,
            }
        }
        Some(change)
    }

    fn apply(&self, mode: u32, search: bool) -> u32 {
        let mut bits = self.bits;
        // `-` clears the bits of the whole mode.
        if self.search && (search || self.operator == Operator::Remove) {
            bits |= EXECUTE;
        }
        for shift in &self.from {
            bits |= (mode >> shift & 0o7) * EXECUTE;
        }
        match self.operator {
            Operator::Add => mode | bits & self.who,
            Operator::Remove => mode & !(bits & self.who),
            Operator::Set => mode & !self.who | bits & self.who,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(text: &str, mode: u32, is_dir: bool) -> u32 {
        Chmod::parse(text).expect(text).apply(mode, is_dir)
    }

    #[test]
    fn modes_as_chmod_has_them() {
        for (text, mode, want) in [
            ("755", 0o600, 0o755),
            ("4755", 0o600, 0o4755),
            ("0", 0o600, 0),
            ("u+x", 0o644, 0o744),
            ("+x", 0o644, 0o755),
            ("a+x", 0o644, 0o755),
            ("u+x,go-w", 0o666, 0o744),
            ("go=", 0o777, 0o700),
            ("u=rwx,go=rx", 0, 0o755),
            ("u=rw,g=r,o=", 0o777, 0o640),
            ("g=u", 0o740, 0o770),
            ("go=u-w", 0o750, 0o755),
            ("o+g", 0o770, 0o777),
            ("o-g", 0o757, 0o752),
            ("a=rX", 0o644, 0o444),
            ("a=rX", 0o744, 0o555),
            ("+X", 0o644, 0o644),
            ("u+x-w", 0o644, 0o544),
            ("u+s", 0o755, 0o4755),
            ("g+s", 0o755, 0o2755),
            ("a-s", 0o6755, 0o755),
            ("o+s", 0o755, 0o755),
            ("+t", 0o777, 0o1777),
            ("-t", 0o1777, 0o777),
            ("u=rwx", 0o4000, 0o700),
            ("-X", 0o755, 0o644),
        ] {
            assert_eq!(applied(text, mode, false), want, "{text} on {mode:o}");
        }
        assert_eq!(
            applied("a=rX", 0o600, true),
            0o555,
            "a directory is searched"
        );
        for bad in [
            "", "99", "77777", "u", "x", "u+x,", ",u+x", "u+q", "k+x", "0o755", "u+7", "+7", "rwx",
        ] {
            assert!(Chmod::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// The program itself, on real files. `X` comes first only: here it goes by the mode that
        /// the file had, as POSIX and BuildKit have it, and there by the mode that earlier clauses
        /// made.
        #[test]
        fn agrees_with_the_program(
            text in "([ugoa]{1,2}[+=-]([rwx]{0,3}|[rwX]{1,2}|[ugo]))(,([ugoa]{1,2}[+=-]([rwx]{0,3}|[ugo]))){0,2}",
            mode in 0u32..0o1000,
            is_dir in any::<bool>(),
        ) {
            use std::os::unix::fs::PermissionsExt;
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("x");
            match is_dir {
                true => std::fs::create_dir(&path).unwrap(),
                false => std::fs::write(&path, "").unwrap(),
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let status = std::process::Command::new("chmod").arg("--").arg(&text).arg(&path).status().unwrap();
            prop_assert!(status.success(), "{text}");
            let want = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            prop_assert_eq!(applied(&text, mode, is_dir) & 0o777, want, "{} on {:o}", text, mode);
        }
    }
}
