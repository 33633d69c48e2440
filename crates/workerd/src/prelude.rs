//! The prelude: two modules that stand before the Worker's own when it has containers, because workerd accepts options of `ctx.container`
//! that it never sends to an engine (contract: workerd, 1.4).
//!
//! Owns: the text of the two. Must not: change what the Worker exports, or its names, stacks and classes: the entry module of the upload is
//! imported whole by the new one, and of its exports only the container classes are replaced, each by a proxy of itself.
//!
//! ```text
//! __wharf_main.js     what workerd takes for the main module; made for each version
//! __wharf_carry.js    `prelude/carry.js`
//! <the upload>
//! ```
//!
//! Start options reach the engine in the variable [`wharf_model::names::START_VARIABLE`]; labels through the service behind the binding [`BINDING`], which
//! carry.js takes out of `env` before the Worker can see it.

use std::fmt::Write;

/// Name of the main module.
pub(crate) const MAIN: &str = "__wharf_main.js";
/// Name of the module with the code.
pub(crate) const CARRY: &str = "__wharf_carry.js";
/// Its text.
pub(crate) const CARRY_TEXT: &str = include_str!("prelude/carry.js");
/// Name of the binding to the engine.
pub(crate) const BINDING: &str = "__WHARF_ENGINE";
/// File name of the socket behind the binding; the daemon listens.
pub const ENGINE_SOCKET: &str = "engine.sock";

/// The main module for an upload whose entry module is `entry`; `classes` are the container classes with their unique keys.
pub(crate) fn main_module<'a>(
    entry: &str,
    classes: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let js = |text: &str| serde_json::Value::from(text).to_string();
    let entry = js(&relative(entry));
    // `export *` leaves the default out. workerd does not start with one that is undefined: where there is none, an empty one does the same.
    let mut out = format!(
        "import {{ carrying }} from {carry};\nimport * as worker from {entry};\nexport * from {entry};\nexport default worker.default ?? {{}};\n",
        carry = js(&relative(CARRY)),
    );
    for (number, (class, unique_key)) in classes.enumerate() {
        // Writing to a String cannot fail. An explicit export goes before one of `export *`.
        let _ = writeln!(
            out,
            "const c{number} = carrying(worker[{class}], {key});\nexport {{ c{number} as {class} }};",
            class = js(class),
            key = js(unique_key),
        );
    }
    out
}

/// Modules are named by paths; the two of the prelude are at the root.
fn relative(name: &str) -> String {
    if name.starts_with('/') || name.contains("://") {
        name.to_owned()
    } else {
        format!("./{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_agree_on_names() {
        for name in [BINDING, wharf_model::names::START_VARIABLE] {
            assert!(CARRY_TEXT.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn names_cannot_leave_their_strings() {
        let text = main_module("a\"b\\.js", [("C", "k\n")].into_iter());
        assert!(text.contains(r#"from "./a\"b\\.js";"#), "{text}");
        assert!(text.contains(r#"carrying(worker["C"], "k\n")"#), "{text}");
        assert!(text.contains(r#"export { c0 as "C" };"#), "{text}");
    }
}
