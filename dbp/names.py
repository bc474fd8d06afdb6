"""Short names of what artifacts are made by, so that a class can move and its artifacts stay.

A manifest and a job file say `select/dbp`, never a module. Classes of other people go by their dotted path. What a
class is called in keys does not hang on this table: it is the bare name of the class, or its `key_name`.
"""

PLACES = {
    "budget": "dbp.selection.budget.Budget",
    "caption/network": "dbp.captioning.network.Network",
    "captioner/local": "dbp.captioning.captioner.LocalCaptioner",
    "captioner/train": "training.captioner.TrainCaptioner",
    "captions/refine": "dbp.captioning.refine.Refine",
    "centroids/kmeans": "dbp.clustering.kmeans.FitCentroids",
    "cluster/imported": "dbp.clustering.imported.Imported",
    "cluster/kmeans": "dbp.clustering.kmeans.KMeans",
    "codes/encode": "dbp.captioning.codes.Encode",
    "codes/vectors": "dbp.captioning.codes.CodeVectors",
    "dedup/borders": "dbp.dedup.borders.Borders",
    "dedup/exact": "dbp.dedup.exact.ExactContent",
    "dedup/none": "dbp.dedup.exact.NoDedup",
    "dedup/semdedup": "dbp.dedup.semdedup.SemDeDup",
    "dedup/similar": "dbp.dedup.similar.NearestEarlier",
    "embed": "dbp.encoders.embed.Embed",
    "encoder/laion": "dbp.encoders.features.Laion",
    "encoder/memory_map": "dbp.encoders.precomputed.MemoryMap",
    "encoder/npz": "dbp.encoders.features.Npz",
    "encoder/openclip": "dbp.encoders.openclip.OpenClip",
    "encoder/precomputed": "dbp.encoders.precomputed.Precomputed",
    "encoder/rehearsal": "dbp.encoders.rehearsal.RehearsalVectors",
    "encoder/timm": "dbp.encoders.timm.Timm",
    "entries/captions": "dbp.metadata.sources.FromCaptions",
    "entries/combined": "dbp.metadata.base.Combined",
    "entries/given": "dbp.metadata.sources.Given",
    "entries/joined": "dbp.metadata.base.Joined",
    "entries/numbers": "dbp.metadata.base.Numbers",
    "entries/published": "dbp.metadata.sources.Published",
    "entries/wikipedia_pairs": "dbp.metadata.wikipedia.Pairs",
    "entries/wikipedia_titles": "dbp.metadata.wikipedia.Titles",
    "entries/wikipedia_words": "dbp.metadata.wikipedia.Words",
    "entries/wordnet": "dbp.metadata.sources.WordNet",
    "evaluate": "evaluation.stage.Evaluate",
    "evaluate/sets": "evaluation.stage.Sets",
    "filter/all": "dbp.filtering.combine.All",
    "filter/basic": "dbp.filtering.rules.Rules",
    "filter/datacomp_basic": "dbp.filtering.datacomp.Basic",
    "filter/image_based": "dbp.filtering.datacomp.ImageBased",
    "filter/laion2b": "dbp.filtering.datacomp.Laion2B",
    "filter/language": "dbp.filtering.language.Language",
    "filter/names_object": "dbp.filtering.language.NamesObject",
    "filter/near_targets": "dbp.filtering.near_targets.NearTargets",
    "filter/none": "dbp.filtering.threshold.NoFilter",
    "filter/score_column": "dbp.filtering.datacomp.ScoreColumn",
    "filter/text_based": "dbp.filtering.datacomp.TextBased",
    "filter/threshold": "dbp.filtering.threshold.Threshold",
    "filter/top_fraction": "dbp.filtering.threshold.TopFraction",
    "index": "dbp.pools.index.Index",
    "index/datacomp": "dbp.pools.datacomp.Metadata",
    "index/rehearsal": "dbp.pools.rehearsal.RehearsalPool",
    "index/sorted_clusters": "dbp.pools.sorted_cluster_pool.SortedClusterPool",
    "match": "dbp.metadata.matching.Matching",
    "pool/glyph_plan": "dbp.pools.glyphs.GlyphPlan",
    "pool/glyphs": "dbp.pools.glyph_pool.GlyphPool",
    "render/glyphs": "dbp.pools.glyph_pool.RenderGlyphs",
    "render/tasks": "dbp.pools.glyph_pool.RenderTasks",
    "score/clip": "dbp.scoring.clip_score.ClipScore",
    "score/clip_loss": "dbp.scoring.clip_loss.ClipLoss",
    "score/column": "dbp.scoring.column.ColumnScore",
    "select/clip_score": "dbp.selection.top_score.TopScore",
    "select/dbp": "dbp.selection.density.Density",
    "select/dynamics": "dbp.selection.cluster_power.ClusterPower",
    "select/hard_cap": "dbp.selection.capped.HardCap",
    "select/imported": "dbp.selection.imported.ImportedList",
    "select/metaclip": "dbp.selection.metadata.MetaClip",
    "select/metaclip_threshold": "dbp.selection.metadata.MetaClipThreshold",
    "select/none": "dbp.selection.base.NoSelection",
    "select/soft_cap": "dbp.selection.capped.SoftCap",
    "select/ssp": "dbp.selection.prototypes.Prototypes",
    "select/tldr": "dbp.selection.codebook.Tldr",
    "select/uniform": "dbp.selection.uniform.Uniform",
    "tars": "dbp.pools.datacomp.Tars",
    "train": "training.stage.Train",
    "train/by_score": "training.feed.weights.ByScore",
    "train/by_source": "training.feed.weights.BySource",
    "train/by_uid": "training.feed.weights.ByUid",
    "train/caption_mix": "training.feed.captions.CaptionMix",
    "train/crop": "training.feed.augmentation.RandomResizedCrop",
    "train/csv": "training.account.metrics.Csv",
    "train/held_out": "training.watching.watch.HeldOut",
    "train/model": "training.config.Model",
    "train/optimiser": "training.config.Optimiser",
    "train/shift": "training.feed.augmentation.Shift",
    "train/streaming": "training.feed.streaming.Streaming",
    "train/suite": "evaluation.in_training.Suite",
    "train/wandb": "training.account.metrics.Wandb",
    "train/watch": "training.watching.watch.Watch",
    "valid": "dbp.curate.ValidRows",
}
# Where a class was, in stores of before it moved -> its name. A class that moves leaves a line here.
FORMER = {
    "dbp.filtering.datacomp.NearTargets": "filter/near_targets",
    "dbp.captioning.captioner.Network": "caption/network",
    "dbp.data.index.Index": "index",
    "dbp.data.datacomp.Metadata": "index/datacomp",
    "dbp.data.rehearsal.RehearsalPool": "index/rehearsal",
    "dbp.data.sorted_cluster_pool.SortedClusterPool": "index/sorted_clusters",
    "dbp.data.glyphs.GlyphPlan": "pool/glyph_plan",
    "dbp.data.glyph_pool.GlyphPool": "pool/glyphs",
    "dbp.data.glyph_pool.RenderGlyphs": "render/glyphs",
    "dbp.data.glyph_pool.RenderTasks": "render/tasks",
    "dbp.data.datacomp.Tars": "tars",
    "dbp.metadata.given.Given": "entries/given",
    "dbp.metadata.captions.FromCaptions": "entries/captions",
    "dbp.metadata.published.Published": "entries/published",
    "dbp.metadata.wordnet.WordNet": "entries/wordnet",
    "training.weights.ByScore": "train/by_score",
    "training.weights.BySource": "train/by_source",
    "training.weights.ByUid": "train/by_uid",
    "training.captions.CaptionMix": "train/caption_mix",
    "training.augmentation.RandomResizedCrop": "train/crop",
    "training.metrics.Csv": "train/csv",
    "training.watch.HeldOut": "train/held_out",
    "training.augmentation.Shift": "train/shift",
    "training.streaming.Streaming": "train/streaming",
    "training.metrics.Wandb": "train/wandb",
    "training.watch.Watch": "train/watch",
}
_NAMES = {place: name for name, place in PLACES.items()} | FORMER


def place_of(target: str) -> str:
    """The dotted path of what a config, a manifest or a job file names: by name, or by path of today or before."""
    return PLACES.get(_NAMES.get(target, target), target)


def name_of(target: type | str) -> str:
    """The registered name of a class, or of a dotted path; the path itself where there is none."""
    if isinstance(target, type):
        target = f"{target.__module__}.{target.__qualname__}"
    return _NAMES.get(target, target)


def word_of(target: str) -> str:
    """A word for people: the last part of a registered name, or of the class in lower case."""
    return name_of(target).rpartition("/")[2].rpartition(".")[2].lower()
