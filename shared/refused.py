"""Settings an author may look for and a study cannot have: why not, and what there is instead.

Most make one patient's gradient depend on other patients, which no clipping bounds, or send
numbers of patients without noise: see "Remedies" in `docs/privacy.md`. The others are each site's
own to decide, or have a place in the format and no release yet that reads them.
"""

from __future__ import annotations

_MIXING = (
    "refused, as mixing patients puts one into another's gradient; training.augment "
    "(views, shift, rotate, scale, flip, intensity) varies each patient's own images"
)
_LOTS = (
    "refused, as each patient must be drawn with the same chance whatever the others' classes are; "
    "training.loss = {name = 'class-balanced'} or {name = 'logit-adjustment'} weighs by noised "
    "counts instead"
)
_COUNTS = (
    "refused, as exact class counts tell of each patient; training.loss = {name = "
    "'class-balanced'} or {name = 'logit-adjustment'} takes each site's noised counts"
)
_NORM = (
    "refused, as batch norm lets each image change the others' gradients; the models have group "
    "or layer norm, of which training.local_norms keeps each site's own"
)
_MEANS = (
    "refused, as a site's own values enter every patient's gradient without noise; table.missing = "
    "'mean' or 'median' fills in from all sites' noised statistics, 'indicator' and 'embedding' "
    "need none"
)
_MASK = (
    "refused, as an average over all labels known in a batch divides each patient's loss by the "
    "others' gaps; task.findings = true averages over each patient's own known findings"
)
_SITES = (
    "refused, as a refusal that depends on the patients tells of one; each site decides by its "
    "own policy ({0} in site.toml), before it approves"
)
_NOT_YET = "refused, as this release reads {0} only"

_NAMES = {
    _MIXING: "mixup mix_up manifold_mixup cutmix cut_mix mosaic mixmatch smote",
    _LOTS: (
        "balanced_lots balanced_lot balanced_batches balanced_batch balanced_sampling "
        "balanced_sampler class_balanced_sampling weighted_sampler weighted_sampling "
        "weighted_random_sampler stratified_sampling stratified_lots oversample oversampling "
        "undersample undersampling training.balanced training.sampler training.stratified"
    ),
    _COUNTS: (
        "class_weights class_weight class_counts exact_counts pos_weight pos_weights "
        "inverse_frequency weighted_cross_entropy balanced_cross_entropy training.weights "
        "training.weight training.counts training.weighted"
    ),
    _NORM: (
        "batch_norm batchnorm batch_normalisation batch_normalization sync_batch_norm model.norm "
        "model.normalisation model.normalization"
    ),
    _MEANS: (
        "local_mean local_means local_median site_mean site_means site_median exact_mean "
        "exact_median hospital_mean impute imputer imputation table.knn table.mice table.mode"
    ),
    _MASK: (
        "batch_mask loss_mask mask_loss masked_loss masked_mean masked_average mask_reduction "
        "masked_cross_entropy task.mask training.mask training.masked training.reduction"
    ),
    _SITES.format("policy.min_patients"): "data.min_patients",
    _SITES.format("policy.max_set_aside"): "data.max_set_aside",
    _NOT_YET.format("data.label_of = 'patient'"): "data.examination data.series data.image",
    _NOT_YET.format("data.label_rule = 'agree'"): "data.any data.last data.worst",
}
_WHY = {name: why for why, names in _NAMES.items() for name in names.split()}


def why_refused(section: str, name: str) -> str:
    """Return why a study cannot have a setting and what it can have; empty: nothing is known.

    Args:
        section: Of the study file, such as `training`.
        name: Of the key, or of the value a known key was given.
    """
    plain = name.lower().replace("-", "_").replace(" ", "_")
    return _WHY.get(plain) or _WHY.get(f"{section}.{plain}", "")
