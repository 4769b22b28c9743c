"""The confined process that runs one owner's guests."""
