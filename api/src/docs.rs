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
    use super::OPENAPI;
    use crate::{
        access::Needs,
        router::{ROUTES, Route},
    };

    #[test]
    fn the_document_describes_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let described: std::collections::BTreeSet<_> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, calls)| {
                calls.as_object().expect("calls").keys().map(move |verb| format!("{verb} {path}"))
            })
            .collect();
        let served: std::collections::BTreeSet<_> =
            ROUTES.iter().map(|route| format!("{} {}", route.method.as_str().to_lowercase(), route.path)).collect();
        assert!(served.len() > 15, "{served:?}");
        assert_eq!(described, served);
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
}
