"""Other people's learners behind `bench.methods.Method`; README.md says how to install them."""
