use super::*;
use crate::fields::Rule;

/// Docker's operations, with what a client would write.
fn examples() -> impl Iterator<Item = (&'static Operation, Method, String)> {
    OPERATIONS.iter().map(|it| {
        let path = it.path.replace("{*}", "library/x").replace("{}", "x");
        (it, it.method.parse().unwrap(), path)
    })
}

#[tokio::test]
async fn every_operation_names_itself_where_it_is_not_served() {
    for (operation, method, path) in examples() {
        let found = find(&method, &path).unwrap();
        assert_eq!(found.path, operation.path, "{path}");
        let error = absent(method.clone(), path.parse().unwrap()).await;
        assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
        let shown = operation
            .path
            .replace("{}", "{id}")
            .replace("{*}", "{name}");
        let name = format!("Wharf does not have {method} {shown};");
        assert!(error.message.starts_with(&name), "{error}");
    }
}

#[tokio::test]
async fn other_paths_are_not_found() {
    for (method, path) in [
        (Method::GET, "/nope"),
        (Method::GET, "/containers"),
        (Method::PATCH, "/containers/x/start"),
        (Method::POST, "/containers/x/rename/y"),
        (Method::GET, "/containers//json"),
        (Method::GET, "/images//json"),
        (Method::GET, "/"),
    ] {
        let error = absent(method, path.parse().unwrap()).await;
        assert_eq!(error, ApiError::page_not_found(), "{path}");
    }
}

#[test]
fn every_parameter_that_is_refused_is_named() {
    let mut refused = 0;
    for (operation, method, path) in examples() {
        for field in operation.query {
            let uri: Uri = format!("{path}?{}=", field.name).parse().unwrap();
            assert_eq!(check_query(&method, &uri), Ok(()), "{uri}");
            let value = if field.name == "pause" {
                "0"
            } else {
                "something"
            };
            let uri: Uri = format!("{path}?{}={value}", field.name).parse().unwrap();
            match (field.rule, check_query(&method, &uri)) {
                (Rule::Refused(mend), Err(error)) => {
                    assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
                    assert!(error.message.starts_with(field.name), "{error}");
                    assert!(error.message.ends_with(mend), "{error}");
                    refused += 1;
                }
                (Rule::Refused(_), Ok(())) => panic!("{uri} is accepted"),
                (_, checked) => assert_eq!(checked, Ok(()), "{uri}"),
            }
        }
    }
    assert!(refused > 20, "{refused}");
}
