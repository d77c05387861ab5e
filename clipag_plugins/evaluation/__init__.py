"""Evaluation: how well pictures show their prompts, and how robust and aligned models are.

`tables` measures folders of pictures and makes the paper's Tables 1 and 2 (Ganz & Elad, WACV 2024):
similarity, CLIPScore and R-Prec by any CLIP, the LAION aesthetic score and preference, Inception
Score, FID and LPIPS. `robustness` measures zero-shot accuracy under attack, `alignment` the PAG
score. Each returns a `report.Report`. What cannot be measured becomes a note of the report, and the
rest is still measured.
"""
