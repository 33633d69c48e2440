//! Entrances for fuzzing; not part of the interface.

use std::collections::BTreeMap;

use crate::chmod::Chmod;
use crate::dockerignore::Dockerignore;
use crate::instruction::Instruction;
use crate::state::State;
use crate::{BuildError, instruction, parse, plan, words};

/// A Dockerfile, and a .dockerignore after the first NUL: both are read, stages planned, and the
/// arguments of all instructions substituted, as far as that needs no files.
///
/// # Panics
/// An error names no line of the file.
pub fn dockerfile(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (text, ignore) = text.split_once('\0').unwrap_or((&text, ""));
    if let Ok(ignore) = Dockerignore::parse(ignore) {
        let _ = (
            ignore.excludes("a/b/c"),
            ignore.excludes(text.get(..8).unwrap_or("x")),
        );
    }
    if let Err(BuildError::Dockerfile { line, .. }) = read(text) {
        assert!(
            (1..=text.split('\n').count()).contains(&line),
            "line {line}"
        );
    }
}

fn read(text: &str) -> Result<(), BuildError> {
    let file = parse::parse(text)?;
    let steps = instruction::steps(&file)?;
    let build_args = BTreeMap::from([("GIVEN".to_owned(), "a/b.c:1*2".to_owned())]);
    let plan = plan::plan(steps, file.escape, &build_args, None)?;
    assert!(plan.needed[plan.target]);
    for stage in &plan.stages {
        let mut state = State::scratch();
        for step in &stage.steps {
            let escape = file.escape;
            let scope = state.clone();
            let expand = |text: &String| {
                // A broken instruction does not keep the others from being tried.
                words::expand(text, escape, &|name| scope.variable(name)).unwrap_or_default()
            };
            match &step.instruction {
                Instruction::Arg(args) => {
                    for (name, default) in args {
                        let default = default.as_ref().map(expand);
                        state.declare(name, default, &build_args, &plan.global_args);
                    }
                }
                Instruction::Env(pairs) => {
                    for (name, value) in pairs {
                        // Values may grow with each instruction, as they do in a real build.
                        if expand(value).len() < 4096 {
                            state.set_env((&expand(name), &expand(value)));
                        }
                    }
                }
                Instruction::Label(pairs) => {
                    for (name, value) in pairs {
                        state.label(&expand(name), &expand(value));
                    }
                }
                Instruction::Workdir(path) => state.set_workdir(&expand(path)),
                Instruction::User(user) => state.user = expand(user),
                Instruction::Expose(ports) => {
                    let ports = words::expand_words(ports, escape, &|name| scope.variable(name));
                    for port in ports.unwrap_or_default() {
                        let _ = state.expose(&port);
                    }
                }
                Instruction::Stopsignal(signal) => {
                    let _ = state.set_stop_signal(&expand(signal));
                }
                Instruction::Cmd(command) => state.set_cmd(command),
                Instruction::Entrypoint(command) => state.set_entrypoint(command),
                Instruction::Copy(copy) => {
                    copy.sources.iter().for_each(|source| drop(expand(source)));
                    for heredoc in &copy.inline {
                        let _ =
                            words::expand_heredoc(&heredoc.content, &|name| scope.variable(name));
                    }
                    if let Some(Ok(chmod)) = copy.chmod.as_ref().map(|text| Chmod::parse(text)) {
                        assert!(chmod.apply(0o644, false) <= 0o7777);
                    }
                }
                Instruction::Run(run) => drop(crate::run::command(run, &state.shell)),
                _ => {}
            }
        }
        let _ = state.to_image("1970-01-01T00:00:00Z");
    }
    Ok(())
}
