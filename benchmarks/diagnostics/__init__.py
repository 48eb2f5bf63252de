"""Networks whose diagnosis is known."""
