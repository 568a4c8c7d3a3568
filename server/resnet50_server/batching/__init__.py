"""Dynamic batching: queues, scheduler, deadlines, latency model, retries."""
