"""A small CLIP, its student and a few pictures."""

from clip_fixtures import clip_dir, clip_teacher, folder, student  # noqa: F401
