//! What the admin has written.

pub mod pool;
pub mod settings;
