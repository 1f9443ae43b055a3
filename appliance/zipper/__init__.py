"""The zipper: takes frames from sources, routes them by tag to observers, takes what those emit."""
