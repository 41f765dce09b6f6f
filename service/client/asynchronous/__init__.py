"""The client with `async` and `await`: written by hand, source of the other edition."""
