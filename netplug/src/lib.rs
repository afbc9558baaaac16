//! Pod network, services, host ports and DNS of one box
