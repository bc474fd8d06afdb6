"""One optimiser step: model, loss, optimiser, precision."""
