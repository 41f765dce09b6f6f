"""The laws of the learner, the promises of the service; one file per subject."""
