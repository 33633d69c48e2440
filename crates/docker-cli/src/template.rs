//! The part of Go's `text/template` that `docker ... --format` users write: field paths, `json`, `len`, `range`, `index`-free pipelines.
//!
//! Owns: evaluation of a template over JSON. Must not: guess; what it does not know is an error that names it.
//!
//! Grammar: text with actions `{{ [json|len|upper|lower] .Path.To.Field }}` or `{{ .Path | json }}`; `{{.}}` is the whole value;
//! `{{ range .Path }} ... {{ end }}` is its text once for each item, with `{{.}}` as the item.

use serde_json::Value;

/// A template that can't be evaluated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("template: {0}")]
pub struct TemplateError(String);

/// Evaluates `template` over `value`. `\t` and `\n` escapes are expanded as docker does.
pub fn render(template: &str, value: &Value) -> Result<String, TemplateError> {
    if template == "json" {
        return Ok(value.to_string());
    }
    let template = template.replace("\\t", "\t").replace("\\n", "\n");
    let mut out = String::new();
    match block(&template, value, &mut out)? {
        (Stop::Text, _) => Ok(out),
        (Stop::End, _) => Err(TemplateError("{{end}} without a {{range}}".into())),
    }
}

/// What ended a block.
enum Stop {
    Text,
    End,
}

/// Evaluates up to the end of the text or to `{{end}}`; returns what follows.
fn block<'t>(
    mut rest: &'t str,
    value: &Value,
    out: &mut String,
) -> Result<(Stop, &'t str), TemplateError> {
    while let Some(start) = rest.find("{{") {
        out.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end = after
            .find("}}")
            .ok_or_else(|| TemplateError("an action is not closed with }}".into()))?;
        let action = after[..end].trim_matches(|c: char| c.is_whitespace() || c == '-');
        rest = &after[end + 2..];
        if action == "end" {
            return Ok((Stop::End, rest));
        }
        match action.strip_prefix("range ") {
            Some(list) => rest = range(&evaluate(list.trim(), value)?, rest, out)?,
            None => out.push_str(&print(&evaluate(action, value)?)),
        }
    }
    out.push_str(rest);
    Ok((Stop::Text, ""))
}

/// The block of a `{{range}}`, once for each item; returns what follows its `{{end}}`.
fn range<'t>(list: &Value, body: &'t str, out: &mut String) -> Result<&'t str, TemplateError> {
    let items: Vec<&Value> = match list {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        Value::Null => Vec::new(),
        _ => return Err(TemplateError("range over a value that is no list".into())),
    };
    let once = |item: &Value, out: &mut String| match block(body, item, out)? {
        (Stop::End, after) => Ok(after),
        (Stop::Text, _) => Err(TemplateError("a {{range}} without its {{end}}".into())),
    };
    if items.is_empty() {
        return skip(body);
    }
    let mut after = body;
    for item in items {
        after = once(item, out)?;
    }
    Ok(after)
}

/// What follows the `{{end}}` that belongs to a block.
fn skip(mut rest: &str) -> Result<&str, TemplateError> {
    let mut depth = 0usize;
    while let Some((_, after)) = rest.split_once("{{") {
        let Some((action, after)) = after.split_once("}}") else {
            break;
        };
        let action = action.trim_matches(|c: char| c.is_whitespace() || c == '-');
        rest = after;
        match action {
            "end" if depth == 0 => return Ok(rest),
            "end" => depth -= 1,
            _ if action.starts_with("range ") => depth += 1,
            _ => {}
        }
    }
    Err(TemplateError("a {{range}} without its {{end}}".into()))
}

/// One action: a pipeline whose first command is a path or a function with a path.
fn evaluate(action: &str, root: &Value) -> Result<Value, TemplateError> {
    let mut stages = action.split('|').map(str::trim);
    let first = stages.next().unwrap_or_default();
    let mut words = first.split_whitespace();
    let mut current = match (words.next(), words.next(), words.next()) {
        (Some(path), None, _) if path.starts_with('.') => lookup(path, root)?,
        (Some(function), Some(path), None) if path.starts_with('.') => {
            apply(function, lookup(path, root)?)?
        }
        _ => return Err(unsupported(first)),
    };
    for function in stages {
        current = apply(function, current)?;
    }
    Ok(current)
}

fn unsupported(action: &str) -> TemplateError {
    TemplateError(format!(
        "{{{{{action}}}}} is not supported; use a field path (.Config.Env), json, len, range, upper or lower"
    ))
}

fn lookup(path: &str, root: &Value) -> Result<Value, TemplateError> {
    let mut current = root;
    for field in path.split('.').filter(|f| !f.is_empty()) {
        current = match current {
            Value::Object(map) => map
                .get(field)
                .ok_or_else(|| TemplateError(format!("there is no field \"{field}\" in {path}")))?,
            // An absent map (nil in Go) has no keys; docker prints <no value>.
            Value::Null => return Ok(Value::Null),
            _ => {
                return Err(TemplateError(format!(
                    "\"{field}\" in {path}: not an object"
                )));
            }
        };
    }
    Ok(current.clone())
}

fn apply(function: &str, value: Value) -> Result<Value, TemplateError> {
    Ok(match function {
        "json" => Value::String(value.to_string()),
        "len" => Value::from(match &value {
            Value::Array(a) => a.len(),
            Value::Object(o) => o.len(),
            Value::String(s) => s.len(),
            Value::Null => 0,
            _ => return Err(TemplateError("len of a value that has no length".into())),
        }),
        "upper" => Value::String(print(&value).to_uppercase()),
        "lower" => Value::String(print(&value).to_lowercase()),
        _ => return Err(unsupported(function)),
    })
}

/// As Go prints values: strings bare, lists in brackets, maps as `map[k:v]`.
fn print(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(print).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let items: Vec<_> = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", print(v)))
                .collect();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_wrangler_asks_for() {
        let image = json!({
            "RepoDigests": ["127.0.0.1:7400/a/hello@sha256:00"],
            "Size": 1234, "RootFS": {"Layers": ["a", "b"]}, "Os": "linux", "Architecture": "amd64"
        });
        assert_eq!(
            render("{{ json .RepoDigests }}", &image).unwrap(),
            r#"["127.0.0.1:7400/a/hello@sha256:00"]"#
        );
        assert_eq!(
            render("{{ .Size }} {{ len .RootFS.Layers }}", &image).unwrap(),
            "1234 2"
        );
        assert_eq!(
            render("{{ .Os }}/{{ .Architecture }}", &image).unwrap(),
            "linux/amd64"
        );
        assert_eq!(render("{{.RootFS.Layers | len}}", &image).unwrap(), "2");
        let tags = json!({"RepoTags": ["a:1", "b:2"], "None": null});
        assert_eq!(
            render("{{ range .RepoTags }}{{ . }}\n{{ end }}!", &tags).unwrap(),
            "a:1\nb:2\n!"
        );
        assert_eq!(
            render("{{range .None}}x{{range .Y}}{{end}}{{end}}-", &tags).unwrap(),
            "-"
        );
        assert_eq!(render("json", &json!([1])).unwrap(), "[1]");
    }

    #[test]
    fn mistakes_are_named() {
        let v = json!({"A": 1});
        for bad in [
            "{{ .B }}",
            "{{ .A",
            "{{ range .A }}",
            "{{ range .A }}{{ end }}",
            "{{ end }}",
            "{{ len .A }}",
            "{{ .A.B }}",
        ] {
            assert!(render(bad, &v).is_err(), "{bad}");
        }
    }
}
