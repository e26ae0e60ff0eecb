//! Files as such: replaced as a whole or not at all, their checksums, and tensors written one after
//! the other. What stands in them is unknown here.

pub mod checksum;
pub mod durable;
pub mod regular;
pub mod stored;
pub mod tensor_file;
