"""What went into a package, by its lock, and what its graph's bytes are."""

from __future__ import annotations

from pydantic import Field

from edgetune.report.schema.part import Count, Part


class License(Part):
    """What a model's folder says of its license; `source` is the file that says it."""

    name: str | None
    source: str | None = None
    # Why there is no name.
    reason: str | None = None


class SourceModel(Part):
    """A base or an adapter: names, digests of its files, license."""

    name: str
    # Of a hub id: the commit that was taken.
    commit: str | None = None
    # Of `files` in canonical JSON.
    digest: str
    files: dict[str, str]
    # Null in packages of versions that did not look.
    license: License | None = None


class Provenance(Part):
    """The package's lock: inputs, versions, seeds, keys of the build's steps."""

    base: SourceModel | None
    base_before: SourceModel | None = None
    adapters: list[SourceModel] = Field(default_factory=list)
    # {evaluation, calibration: digest of the file, or null where none was given}
    data: dict[str, str | None] = Field(default_factory=dict)
    versions: dict[str, str | None] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    steps: dict[str, str] = Field(default_factory=dict)


class GraphModule(Part):
    """A matrix of the graph: bits of a weight, bytes with scales and zero points."""

    name: str
    bits: Count
    # Weights that share a scale; null where they have none.
    group_size: Count | None
    values: Count
    bytes: Count


class GraphWeights(Part):
    """The graph's matrices in its order; `other_bytes`: vectors and tables."""

    modules: list[GraphModule]
    other_bytes: Count
