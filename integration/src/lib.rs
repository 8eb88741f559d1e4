//! A real Envoy under load.
