"""The page of `stan-infer serve`. Imports library, engines, video, system. Start at `serve`."""
