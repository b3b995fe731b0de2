"""The sections of the report for results that ``python -m train`` writes, by task."""

from eval.section import Section

SECTIONS = {
    "segmentation": Section(
        "Segmentation",
        "In percent, before and after the training: the mean over classes of intersection over union, and "
        "the share of pixels.",
        {
            "before/miou": ("mIoU before", 1),
            "miou": ("mIoU", 1),
            "before/pixels": ("pixels before", 1),
            "pixels": ("pixels", 1),
            "updates": ("updates", 0),
            "n": ("images", 0),
        },
        ("miou", "higher is better"),
    ),
    "detection": Section(
        "Detection",
        "COCO's average precision in percent, of boxes and of masks, before and after the training; AP50 "
        "asks for an intersection over union of 0.5 only.",
        {
            "before/box_ap": ("box AP before", 1),
            "box_ap": ("box AP", 1),
            "box_ap50": ("box AP50", 1),
            "before/mask_ap": ("mask AP before", 1),
            "mask_ap": ("mask AP", 1),
            "mask_ap50": ("mask AP50", 1),
            "updates": ("updates", 0),
            "n": ("images", 0),
        },
        ("box_ap", "higher is better"),
    ),
}
