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
        // The router says `.route("PATH", verb(handler))`, one line each.
        let served: std::collections::BTreeSet<_> = include_str!("router.rs")
            .lines()
            .filter_map(|line| {
                let (path, call) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
                Some(format!("{} {path}", call.split('(').next()?))
            })
            .collect();
        assert!(served.len() > 15, "{served:?}");
        assert_eq!(described, served);
    }
}
