//! The part of Go's `text/template` that `docker ... --format` users write: field paths, `json`, `len`, `index`-free pipelines.
//!
//! Owns: evaluation of a template over JSON. Must not: guess; what it does not know is an error that names it.
//!
//! Grammar: text with actions `{{ [json|len|upper|lower] .Path.To.Field }}` or `{{ .Path | json }}`; `{{.}}` is the whole value.

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
    let mut rest = template.as_str();
    while let Some(start) = rest.find("{{") {
        out.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end = after
            .find("}}")
            .ok_or_else(|| TemplateError("an action is not closed with }}".into()))?;
        let action = after[..end].trim_matches(|c: char| c.is_whitespace() || c == '-');
        out.push_str(&print(&evaluate(action, value)?));
        rest = &after[end + 2..];
    }
    out.push_str(rest);
    Ok(out)
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
        "{{{{{action}}}}} is not supported; use a field path (.Config.Env), json, len, upper or lower"
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
    use super::*;
    use serde_json::json;

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
        assert_eq!(render("json", &json!([1])).unwrap(), "[1]");
    }

    #[test]
    fn mistakes_are_named() {
        let v = json!({"A": 1});
        for bad in [
            "{{ .B }}",
            "{{ .A",
            "{{ range .A }}",
            "{{ len .A }}",
            "{{ .A.B }}",
        ] {
            assert!(render(bad, &v).is_err(), "{bad}");
        }
    }
}
