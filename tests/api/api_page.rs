//! `docs/API.md`: its examples do what they say, and its tables are those of the code.

use super::page::Page;

mod examples;
mod grpcurl;
mod reasons;
mod services;

const PAGE: Page = Page(include_str!("../../docs/API.md"));
