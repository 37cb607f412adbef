"""Processing of a session's answers: when the question is asked, alerts, a log, snapshots, and deliveries."""
