"""The operator's panel: one Qt widget, as an rqt plugin and in a window of its own (`rlt panel`)."""
