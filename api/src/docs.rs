//! `/openapi.json` and `/docs`: the contract for machines and for people, out of the program itself.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};

use crate::request;

/// The contract as OpenAPI 3.1.
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");

pub(crate) async fn openapi() -> Response {
    request::json(StatusCode::OK, OPENAPI)
}

pub(crate) async fn page() -> Response {
    let mut response = Response::new(include_str!("../docs.html").into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        path::{Path, PathBuf},
    };

    use super::OPENAPI;
    use crate::{
        access::Needs,
        router::{ROUTES, Route},
    };

    #[test]
    fn the_document_describes_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let described: BTreeSet<_> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, calls)| {
                calls.as_object().expect("calls").keys().map(move |verb| format!("{verb} {path}"))
            })
            .collect();
        let served: BTreeSet<_> =
            ROUTES.iter().map(|route| format!("{} {}", route.method.as_str().to_lowercase(), route.path)).collect();
        assert!(served.len() > 15, "{served:?}");
        assert_eq!(described, served);
    }

    #[test]
    fn the_page_shows_all_that_the_document_says_of_a_route() {
        let page = include_str!("../docs.html");
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let mut shown = BTreeSet::new();
        let paths = document["paths"].as_object().expect("paths").values();
        for call in paths.flat_map(|calls| calls.as_object().expect("calls").values()) {
            shown.extend(call.as_object().expect("a call").keys());
        }
        // The scope says whether a key is needed.
        shown.retain(|what| *what != "security");
        assert!(shown.len() > 5, "{shown:?}");
        for what in shown {
            let is_shown = page.contains(&format!("call.{what}")) || page.contains(&format!("call[\"{what}\"]"));
            assert!(is_shown, "{what}");
        }
    }

    #[test]
    fn the_document_names_the_scope_of_each_route() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        for Route { method, path, needs, .. } in ROUTES {
            let call = &document["paths"][path][method.as_str().to_lowercase()];
            let scope = match needs {
                Needs::Nothing => None,
                Needs::Scope(scope) => Some(scope.name().to_owned()),
                Needs::AnyOf(scopes) => Some(scopes.to_string()),
            };
            assert_eq!(call["x-scope"].as_str(), scope.as_deref(), "{method} {path}");
            assert_eq!(call["security"].as_array().map(Vec::is_empty), Some(scope.is_none()), "{method} {path}");
        }
    }

    /// The text of every file below a folder.
    fn sources(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path());
        let read = |path: PathBuf| match path.is_dir() {
            true => sources(&path),
            false => vec![std::fs::read_to_string(&path).expect("a source")],
        };
        entries.flat_map(read).collect()
    }

    /// The codes that a source names right after some words, behind at most a status.
    fn codes_after<'s>(source: &'s str, words: &str) -> Vec<&'s str> {
        let before = |sign: char| sign.is_ascii_uppercase() || sign.is_whitespace() || ['_', ','].contains(&sign);
        let code = |rest: &'s str| rest.trim_start_matches(before).strip_prefix('"')?.split('"').next();
        let is_code = |text: &&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        source.split(words).skip(1).filter_map(code).filter(|text| !text.is_empty()).filter(is_code).collect()
    }

    #[test]
    fn the_document_names_every_code_that_a_problem_can_have() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let named = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array();
        let named: BTreeSet<_> = named.expect("codes").iter().filter_map(serde_json::Value::as_str).collect();
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        let made = sources.iter().flat_map(|source| {
            ["StatusCode::", "not_found(", "unknown_id("].into_iter().flat_map(move |words| codes_after(source, words))
        });
        let rejections = codes_after(include_str!("../../ledger-core/src/rejection.rs"), "=> ");
        let made: BTreeSet<_> = made.chain(rejections).collect();
        assert!(made.len() > 25, "{made:?}");
        assert_eq!(named, made);
    }

    #[test]
    fn the_document_lets_null_stand_for_what_is_left_out() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let calls = document["paths"].as_object().expect("paths").values();
        for call in calls.flat_map(|calls| calls.as_object().expect("calls").values()) {
            let schema = &call["requestBody"]["content"]["application/json"]["schema"];
            let schema = match schema["$ref"].as_str() {
                Some(reference) => document.pointer(reference.trim_start_matches('#')).expect("a schema"),
                None => schema,
            };
            let holds = |list: &serde_json::Value, text: &str| {
                list.as_array().is_some_and(|list| list.iter().any(|one| one == text))
            };
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                assert_ne!(holds(&schema["required"], name), holds(&field["type"], "null"), "{name} in {schema}");
            }
        }
    }
}
