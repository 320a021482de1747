"""Patch-contrastive loss, MINE and gradient map against the official code's numbers."""

import torch

from miudiff.contrast import patch_nce
from miudiff.images import gradient_map
from miudiff.information.mine import MovingDenominator, donsker_varadhan, f_divergence_bound

TEMPERATURE = 0.07


def test_the_patch_loss_of_recorded_features(golden, agree):
    query, key = (torch.from_numpy(golden[f"patchnce/{name}"]) for name in ("query", "key"))
    agree(patch_nce(query, key, TEMPERATURE).flatten(), golden["patchnce/loss"], "patchnce/loss")


def unit_pair(det, rows):
    query, other = det((rows, 32), 0.37, 0.1), det((rows, 32), 0.53, 0.7)
    return (torch.nn.functional.normalize(v, dim=1) for v in (query, query + 0.5 * other))


def test_the_patch_loss_within_images_and_its_gradient(formulas, det, agree_with_summary):
    rows = formulas["cut_patchnce"]["per_image"]["n"]
    query, key = (v.view(2, rows // 2, 32) for v in unit_pair(det, rows))
    query.requires_grad_(True)
    loss = patch_nce(query, key, TEMPERATURE)
    agree_with_summary(loss.flatten(), formulas["cut_patchnce"]["per_image"], "per image")
    loss.mean().backward()
    agree_with_summary(query.grad.view(rows, 32), formulas["cut_patchnce"]["grad_q"], "gradient")


def test_the_patch_loss_with_negatives_from_all_images(formulas, det, agree_with_summary):
    rows = formulas["cut_patchnce"]["all_neg"]["n"]
    query, key = (v.view(1, rows, 32) for v in unit_pair(det, rows))
    agree_with_summary(
        patch_nce(query, key, TEMPERATURE).flatten(), formulas["cut_patchnce"]["all_neg"], "all"
    )


def test_the_patch_loss_as_zecon_takes_it(formulas, det, agree):
    query, key = (v[None] for v in unit_pair(det, 64))
    agree(patch_nce(query, key, TEMPERATURE).mean(), formulas["zecon"]["loss"], "zecon")


def test_both_bounds(formulas, det, agree):
    joint, marginal = det((64, 1), 0.37, 0.1).T, 2 * det((64, 1), 0.53, 0.2).T
    agree(donsker_varadhan(joint, marginal)[0], formulas["mine"]["dv"], "dv")
    agree(f_divergence_bound(joint, marginal)[0], formulas["mine"]["fdiv"], "fdiv")


def test_the_biased_gradient(formulas, det, agree_with_summary):
    joint = det((64, 1), 0.37, 0.1).T
    marginal = (2 * det((64, 1), 0.53, 0.2)).requires_grad_(True)
    (-donsker_varadhan(joint, marginal.T)).sum().backward()
    agree_with_summary(marginal.grad, formulas["mine"]["biased_grad"], "biased gradient")


def test_the_gradient_with_a_moving_denominator(formulas, det, agree, agree_with_summary):
    joint, first = det((64, 1), 0.37, 0.1).T, 2 * det((64, 1), 0.53, 0.2)
    second = (first + 0.5).requires_grad_(True)
    denominator = MovingDenominator(rate=0.01)
    denominator.loss(joint, first.T)
    denominator.loss(joint, second.T).backward()
    agree(denominator.value[0], formulas["mine"]["ema_running"], "moving average")
    agree_with_summary(second.grad, formulas["mine"]["ema_grad_second_call"], "corrected gradient")


def test_the_gradient_map_with_spsrs_padding(formulas, det, agree_with_summary):
    summary = formulas["spsr_grad"]["nopadding_pad1"]
    image = det(tuple(summary["shape"]))
    agree_with_summary(gradient_map(image, "constant"), summary, "gradient map")
