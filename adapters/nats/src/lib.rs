//! NATS JetStream for postrider.
