"""`levit demo`: a real stream, class after class, and what a service learned of it."""
