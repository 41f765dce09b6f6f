"""What lies in Redis and in the state directory; the only room that speaks Redis."""
