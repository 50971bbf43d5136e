"""The file formats a clip value stands in: each reader turns text into a tree of nodes that know their position."""
