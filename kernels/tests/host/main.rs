//! The host's arithmetic by its public interface.

mod random;
mod row;
