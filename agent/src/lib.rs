//! The node agent: keeps this box's pods running, with or without the server
