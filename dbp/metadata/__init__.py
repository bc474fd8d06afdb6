"""MetaCLIP's metadata: where entries come from, and which captions hold them."""
