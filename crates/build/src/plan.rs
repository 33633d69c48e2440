//! Stages: which there are, which are needed for the target, and in which order. Pure.

use std::collections::BTreeMap;

use crate::BuildError;
use crate::instruction::{Instruction, Step};
use crate::parse::fail;
use crate::words;

/// Where a stage or a COPY --from begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image of this node.
    Image(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) name: Option<String>,
    pub(crate) base: Base,
    /// Its FROM.
    pub(crate) from: Step,
    /// What follows.
    pub(crate) steps: Vec<Step>,
    /// Why it cannot be built here, whatever its steps are.
    unsupported: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Stage>,
    pub(crate) target: usize,
    /// Per stage: whether the target needs it. Stages depend on earlier ones only.
    pub(crate) needed: Vec<bool>,
    /// ARGs before the first FROM, resolved.
    pub(crate) global_args: BTreeMap<String, String>,
    /// Names that the file declares anywhere: to say which build arguments were not used.
    pub(crate) declared_args: Vec<String>,
}

/// The one platform, as the predefined arguments of the reference.
pub(crate) const PLATFORM_ARGS: [(&str, &str); 8] = [
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
    ("TARGETVARIANT", ""),
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
    ("BUILDVARIANT", ""),
];

impl Stage {
    /// For progress lines: the name, or `stage-N`.
    pub(crate) fn label(&self, index: usize) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("stage-{index}"))
    }

    /// Refuses what is not supported, before anything is built.
    fn check(&self) -> Result<(), BuildError> {
        if let Some(message) = &self.unsupported {
            return Err(fail(self.from.line, message.clone()));
        }
        for step in &self.steps {
            if let Instruction::Unsupported(message) = &step.instruction {
                return Err(fail(step.line, message.clone()));
            }
        }
        Ok(())
    }
}

/// Splits steps into stages and finds what the target needs.
pub(crate) fn plan(
    steps: Vec<Step>,
    escape: char,
    build_args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Plan, BuildError> {
    let mut global_args: BTreeMap<String, String> = BTreeMap::new();
    let mut declared_args = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for step in steps {
        if let Instruction::Arg(args) = &step.instruction {
            declared_args.extend(args.iter().map(|(name, _)| name.clone()));
        }
        match (&step.instruction, stages.last_mut()) {
            (Instruction::From { .. }, _) => {
                let stage = stage(step, escape, &global_args, &stages)?;
                stages.push(stage);
            }
            (_, Some(stage)) => stage.steps.push(step),
            (Instruction::Arg(args), None) => {
                for (name, default) in args {
                    let value = match (build_args.get(name), default) {
                        (Some(v), _) => Some(v.clone()),
                        (None, Some(d)) => Some(
                            words::expand(d, escape, &|n| global(&global_args, n))
                                .map_err(|m| fail(step.line, m))?,
                        ),
                        (None, None) => None,
                    };
                    if let Some(v) = value {
                        global_args.insert(name.clone(), v);
                    }
                }
            }
            (_, None) => {
                return Err(fail(
                    step.line,
                    "the first instruction must be FROM (only ARG may stand before it)",
                ));
            }
        }
    }
    if stages.is_empty() {
        return Err(fail(
            1,
            "there is no FROM: a Dockerfile begins with FROM <image>",
        ));
    }
    let target = match target.filter(|t| !t.is_empty()) {
        None => stages.len() - 1,
        Some(t) => find(&stages, t).ok_or_else(|| {
            BuildError::Failed(format!(
                "the target stage {t:?} is not in the Dockerfile; it has: {}",
                names(&stages)
            ))
        })?,
    };
    let needed = needed(&stages, target)?;
    for (stage, _) in stages.iter().zip(&needed).filter(|(_, needed)| **needed) {
        stage.check()?;
    }
    Ok(Plan {
        stages,
        target,
        needed,
        global_args,
        declared_args,
    })
}

fn names(stages: &[Stage]) -> String {
    stages
        .iter()
        .enumerate()
        .map(|(i, s)| s.name.clone().unwrap_or_else(|| i.to_string()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn global(args: &BTreeMap<String, String>, name: &str) -> Option<String> {
    args.get(name).cloned().or_else(|| {
        PLATFORM_ARGS
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| (*v).to_owned())
    })
}

/// By name or number. Of several stages with one name, the last one counts.
fn find(stages: &[Stage], reference: &str) -> Option<usize> {
    named(stages, reference).or_else(|| reference.parse().ok().filter(|i| *i < stages.len()))
}

fn named(stages: &[Stage], name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    stages
        .iter()
        .rposition(|s| s.name.as_deref() == Some(lower.as_str()))
}

fn stage(
    from: Step,
    escape: char,
    args: &BTreeMap<String, String>,
    earlier: &[Stage],
) -> Result<Stage, BuildError> {
    let Instruction::From {
        image,
        platform,
        name,
    } = &from.instruction
    else {
        return Err(fail(from.line, "FROM expected"));
    };
    let lookup = |n: &str| global(args, n);
    let mut unsupported = None;
    if let Some(platform) = platform {
        let platform = words::expand(platform, escape, &lookup).map_err(|m| fail(from.line, m))?;
        if !matches!(
            platform.as_str(),
            "linux/amd64" | "linux/x86_64" | "linux/amd64/v1"
        ) {
            unsupported = Some(format!(
                "FROM --platform={platform}: images are built for linux/amd64 only"
            ));
        }
    }
    let reference = words::expand(image, escape, &lookup).map_err(|m| fail(from.line, m))?;
    if reference.is_empty() {
        return Err(fail(
            from.line,
            format!(
                "the image {image} is empty after substitution: give its ARG a default before the first FROM, or pass --build-arg"
            ),
        ));
    }
    let base = if reference.eq_ignore_ascii_case("scratch") {
        Base::Scratch
    } else if let Some(i) = named(earlier, &reference) {
        Base::Stage(i)
    } else {
        Base::Image(reference)
    };
    Ok(Stage {
        name: name.clone(),
        base,
        from,
        steps: Vec::new(),
        unsupported,
    })
}

/// What `COPY --from=` in stage `current` means.
pub(crate) fn copy_source(
    stages: &[Stage],
    current: usize,
    from: &str,
    line: usize,
) -> Result<Base, BuildError> {
    match find(stages, from) {
        Some(i) if i < current => Ok(Base::Stage(i)),
        Some(i) if i == current => Err(fail(
            line,
            format!("COPY --from={from} is this stage itself"),
        )),
        Some(_) => Err(fail(
            line,
            format!("COPY --from={from}: that stage comes later; move it up"),
        )),
        None if from.chars().all(|c| c.is_ascii_digit()) => Err(fail(
            line,
            format!("COPY --from={from}: there are only {} stages", stages.len()),
        )),
        None if from.eq_ignore_ascii_case("scratch") => Ok(Base::Scratch),
        None => Ok(Base::Image(from.to_owned())),
    }
}

fn needed(stages: &[Stage], target: usize) -> Result<Vec<bool>, BuildError> {
    let mut needed = vec![false; stages.len()];
    needed[target] = true;
    // A stage depends on earlier ones only, so one pass backwards is enough.
    for i in (0..=target).rev().filter(|i| *i < stages.len()) {
        if !needed[i] {
            continue;
        }
        if let Base::Stage(b) = stages[i].base {
            needed[b] = true;
        }
        for step in &stages[i].steps {
            if let Instruction::Copy(copy) = &step.instruction
                && let Some(from) = &copy.from
                && let Base::Stage(s) = copy_source(stages, i, from, step.line)?
            {
                needed[s] = true;
            }
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(text: &str, args: &[(&str, &str)], target: Option<&str>) -> Result<Plan, String> {
        let file = crate::parse::parse(text).map_err(|e| e.to_string())?;
        let steps = crate::instruction::steps(&file).map_err(|e| e.to_string())?;
        let args = args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        plan(steps, file.escape, &args, target).map_err(|e| e.to_string())
    }

    const THREE: &str =
        "FROM scratch AS a\nFROM scratch AS unused\nFROM a AS b\nFROM scratch\nCOPY --from=b /x /x";

    #[test]
    fn only_needed_stages() {
        let p = make(THREE, &[], None).expect("plan");
        assert_eq!(p.needed, [true, false, true, true]);
        let p = make(THREE, &[], Some("UNUSED")).expect("plan");
        assert_eq!((p.target, p.needed), (1, vec![false, true, false, false]));
        assert!(
            make(THREE, &[], Some("zz"))
                .expect_err("target")
                .contains("it has: a, unused, b, 3")
        );
    }

    #[test]
    fn of_stages_with_one_name_the_later_one_counts() {
        let text = "FROM one AS x\nFROM x AS y\nFROM two AS X\nFROM x\nCOPY --from=x /a /b";
        let p = make(text, &[], None).expect("plan");
        assert_eq!(p.stages[1].base, Base::Stage(0));
        assert_eq!(p.stages[3].base, Base::Stage(2));
        assert_eq!(p.needed, [false, false, true, true]);
        assert_eq!(make(text, &[], Some("x")).expect("plan").target, 2);
        // The one that counts comes after the stage that copies from it.
        let text = "FROM one AS x\nFROM two AS y\nCOPY --from=x /a /b\nFROM three AS x\nFROM y";
        let message = make(text, &[], None).expect_err("later");
        assert!(
            message.starts_with("Dockerfile:3: COPY --from=x: that stage comes later"),
            "{message}"
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_where_it_is_needed() {
        for (feature, base) in [
            ("ONBUILD RUN cat <<E\nnot a line\nE", "a"),
            ("RUN --mount=type=secret,id=x y", "a"),
            ("RUN --network=host y", "a"),
            ("COPY --parents x /y", "a"),
            ("ADD https://example.com/x /y", "a"),
            ("COPY --from=after x /y", "a"),
            ("", "--platform=linux/arm64 a"),
        ] {
            let text =
                format!("FROM {base} AS odd\n{feature}\nFROM b AS plain\nFROM plain AS after");
            let plan = make(&text, &[], None).expect(&text);
            assert_eq!(plan.needed, [false, true, true], "{text}");
            let message = make(&text, &[], Some("odd")).expect_err(&text);
            assert!(message.starts_with("Dockerfile:"), "{text}: {message}");
        }
    }

    #[test]
    fn global_arguments_in_from() {
        let text = "ARG TAG=1\nARG IMG=base:$TAG\nFROM --platform=$BUILDPLATFORM ${IMG} AS x";
        assert_eq!(
            make(text, &[], None).expect("plan").stages[0].base,
            Base::Image("base:1".into())
        );
        assert_eq!(
            make(text, &[("TAG", "2")], None).expect("plan").stages[0].base,
            Base::Image("base:2".into())
        );
        assert!(
            make("ARG I\nFROM $I", &[], None)
                .expect_err("empty")
                .starts_with("Dockerfile:2: the image $I is empty")
        );
    }

    #[test]
    fn mistakes() {
        for (text, want) in [
            (
                "RUN x\nFROM a",
                "Dockerfile:1: the first instruction must be FROM",
            ),
            ("ARG a", "Dockerfile:1: there is no FROM"),
            (
                "FROM --platform=linux/arm64 a",
                "Dockerfile:1: FROM --platform=linux/arm64",
            ),
            (
                "FROM a\nCOPY --from=b /x /\nFROM a AS b\nFROM a\nCOPY --from=0 / /",
                "Dockerfile:2: COPY --from=b: that stage comes later",
            ),
            (
                "FROM a\nCOPY --from=0 /x /",
                "Dockerfile:2: COPY --from=0 is this stage itself",
            ),
            (
                "FROM a\nCOPY --from=7 /x /",
                "Dockerfile:2: COPY --from=7: there are only 1 stages",
            ),
        ] {
            let message = make(text, &[], None).expect_err(text);
            assert!(message.starts_with(want), "{message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_plan_or_an_error_with_a_line(
            lines in proptest::collection::vec("(FROM|COPY|ADD|RUN|ENV|ARG|LABEL|EXPOSE|SHELL|HEALTHCHECK|VOLUME) [ -~]{0,20}|FROM a( AS [a-c])?|COPY --from=[a-c0-3] x y|RUN --mount=type=cache,[ -~]{0,9} x", 0..8)
        ) {
            match make(&lines.join("\n"), &[], None) {
                Ok(plan) => assert!(plan.needed[plan.target]),
                Err(message) => assert!(message.starts_with("Dockerfile:"), "{message}"),
            }
        }
    }
}
