//! Python's part: what an interpreter does that is captured, and which commands it can carry out
//! afterwards.

/// The program of the interpreter that is captured, for `python3 -c`. Its arguments are the modules
/// to import. It tells on descriptor 3: `ready`, or why not, for a person; then it waits on
/// descriptor 0. Once restored it runs what its new process was executed with.
pub const RESUME: &str = include_str!("resume.py");

/// Whether [`RESUME`] can carry out this command line (/proc/<pid>/cmdline): `python [-u] (-m
/// MODULE | -c COMMAND | FILE) ...`. The error is for a person.
pub(super) fn check_arguments(line: &[u8]) -> Result<(), String> {
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let mut next = || words.next().map(String::from_utf8_lossy);
    let mut word = next();
    while word.as_deref() == Some("-u") {
        word = next();
    }
    match word.as_deref() {
        None | Some("") => Err("its command is Python without a program".to_owned()),
        Some("-m" | "-c") => match next() {
            Some(_) => Ok(()),
            None => Err("its command ends with -m or -c".to_owned()),
        },
        Some(option) if option.starts_with('-') => Err(format!(
            "its command gives Python the option {option}; only -u, -m and -c can be used"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_can_be_carried_out() {
        let check = |words: &[&str]| {
            let line: String = words.iter().map(|word| format!("{word}\0")).collect();
            check_arguments(line.as_bytes())
        };
        for good in [
            &["python3", "app.py", "-O"][..],
            &["python3", "-u", "-m", "uvicorn", "app:app"],
            &["python3", "-c", "print(1)"],
            &["/usr/bin/python3", "/usr/bin/uvicorn", "app:app"],
        ] {
            check(good).unwrap();
        }
        for bad in [
            &["python3"][..],
            &["python3", "-O", "app.py"],
            &["python3", "-"],
        ] {
            check(bad).unwrap_err();
        }
    }
}
