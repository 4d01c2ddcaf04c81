//! Which path is answered by what, and what each asks of its caller.

use std::sync::Arc;

use axum::{
    Router,
    http::Method,
    routing::{MethodRouter, get, post},
};

use crate::{
    access::{Needs, Scope},
    accounts, audit, batches, commands, docs, events, freezes, health, inconsistencies, operations, request,
    service::Service,
    stream, transactions,
};

/// A route. There is none without `needs`: who may use it is said where it is made.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) needs: Needs,
    handler: fn() -> MethodRouter<Service>,
}

const fn reads(path: &'static str, needs: Needs, handler: fn() -> MethodRouter<Service>) -> Route {
    Route { method: Method::GET, path, needs, handler }
}

const fn does(path: &'static str, needs: Needs, handler: fn() -> MethodRouter<Service>) -> Route {
    Route { method: Method::POST, path, needs, handler }
}

const READ: Needs = Needs::Scope(Scope::Read);
const ADMIN: Needs = Needs::Scope(Scope::Admin);

/// The routes of the contract.
pub(crate) const ROUTES: &[Route] = &[
    does("/v1/credits", Needs::Scope(Scope::Credit), || post(commands::credit)),
    does("/v1/debits", Needs::Scope(Scope::Debit), || post(commands::debit)),
    does("/v1/freezes", Needs::Scope(Scope::Freeze), || post(commands::freeze)),
    does("/v1/unfreezes", Needs::Scope(Scope::Freeze), || post(commands::unfreeze)),
    does("/v1/refunds", Needs::Scope(Scope::Refund), || post(commands::refund)),
    does("/v1/batches", Needs::COMMANDS, || post(batches::run)),
    reads("/v1/accounts/{user_id}/{credit_type}", READ, || get(accounts::read)),
    reads("/v1/accounts/{user_id}/{credit_type}/transactions", READ, || get(accounts::transactions)),
    reads("/v1/accounts/{user_id}/{credit_type}/freezes", READ, || get(freezes::of_account)),
    does("/v1/accounts/{user_id}/{credit_type}/lock", ADMIN, || post(accounts::lock)),
    does("/v1/accounts/{user_id}/{credit_type}/unlock", ADMIN, || post(accounts::unlock)),
    reads("/v1/freezes/{freeze_id}", READ, || get(freezes::read)),
    reads("/v1/transactions", READ, || get(transactions::find)),
    reads("/v1/transactions/{transaction_id}", READ, || get(transactions::read)),
    does("/v1/operations", Needs::COMMANDS, || post(operations::open)),
    reads("/v1/operations/{operation_id}", READ, || get(operations::read)),
    does("/v1/operations/{operation_id}/steps/{name}", Needs::COMMANDS, || post(operations::step)),
    does("/v1/operations/{operation_id}/compensate", Needs::COMMANDS, || post(operations::compensate)),
    reads("/v1/events", READ, || get(events::read)),
    reads("/v1/events/stream", READ, || get(stream::stream)),
    reads("/v1/audit", ADMIN, || get(audit::search::search)),
    reads("/v1/inconsistencies", ADMIN, || get(inconsistencies::list)),
    does("/v1/inconsistencies/{inconsistency_id}/resolve", ADMIN, || post(inconsistencies::resolve)),
    reads("/livez", Needs::Nothing, || get(health::live)),
    reads("/readyz", Needs::Nothing, || get(health::ready)),
    reads("/metrics", READ, || get(health::metrics)),
    reads("/openapi.json", Needs::Nothing, || get(docs::openapi)),
    reads("/docs", Needs::Nothing, || get(docs::page)),
];

/// The routes, and a way to find out what a request needs before it is let near one.
#[derive(Clone)]
pub(crate) struct Routes {
    router: Router,
    /// Shared: routes are cloned for each request.
    needs: Arc<matchit::Router<Vec<(Method, Needs)>>>,
}

impl Routes {
    pub(crate) fn new(service: Service) -> Self {
        let mut router = Router::new();
        let mut needs: matchit::Router<Vec<(Method, Needs)>> = matchit::Router::new();
        for route in ROUTES {
            router = router.route(route.path, (route.handler)());
            let need = (route.method.clone(), route.needs);
            match needs.at_mut(route.path) {
                Ok(known) => known.value.push(need),
                Err(_) => needs.insert(route.path, vec![need]).expect("the router took it, too"),
            }
        }
        let router = router
            .method_not_allowed_fallback(request::method_not_allowed)
            .fallback(request::no_such_route)
            .with_state(service);
        Self { router, needs: Arc::new(needs) }
    }

    /// What a request needs; `None` when it leads to no route.
    pub(crate) fn needs(&self, method: &Method, path: &str) -> Option<Needs> {
        // Whoever may get something may ask for its head.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let known = self.needs.at(path).ok()?;
        known.value.iter().find(|(known, _)| known == method).map(|(_, needs)| *needs)
    }

    pub(crate) fn router(&self) -> Router {
        self.router.clone()
    }
}
