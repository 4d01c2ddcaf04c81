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
