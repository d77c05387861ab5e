"""How well pictures show their prompts: the paper's measures, by judges that did not guide.

Similarity and R-Prec by any CLIP, CLIPScore, the LAION aesthetic score and its pairwise
preference (Ganz & Elad, WACV 2024, Table 1), Inception Score and FID (Table 2), and LPIPS, the
last three by torchmetrics. Figures that are not a mean over pictures have no confidence interval.
"""
