"""Ablations of DiffEM on digits: what each choice is worth, one at a time.

    python -m experiments.ablations.run [--seeds=3] [--quick] [--processes=2] [--only=noise]

Sampler steps; the start (Gaussian, mixture, the reconstructions of EM-MMPS); the network carried over or fresh; a
wrong rate of erased pixels; the observations' noise; a corruption that is not linear; and 30 rounds, where diversity
shows whether training on one's own draws eats itself.
"""

from __future__ import annotations

from experiments import common, figures
from experiments.common import Job, Row, fields

NAME = "ablations"
BASE = (
    "--config=digits",
    *fields(
        rounds=3,
        m_step__steps=300,
        m_step__batch_size=256,
        network__features="(256,256,256)",
        eval__metrics="('psnr','accuracy','sliced_wasserstein_unpaired')",
        eval__posterior_examples=128,
    ),
)
EDM = fields(denoiser__preconditioning="edm")


def jobs(quick: bool) -> list[Job]:
    base = (*BASE, *(fields(rounds=2, m_step__steps=200) if quick else ()))
    out = [
        Job(str(steps), (*base, *fields(e_step__steps=steps)), "sampler steps") for steps in (8, 16, 32, 64, 128, 256)
    ]
    out += [
        Job("gaussian", base, "start"),
        Job(
            "mixture of 10",
            (*base, *fields(start__name="mixture", start__components=10, start__rank=8, start__iterations=20)),
            "start",
        ),
        Job("EM-MMPS", (*base, *EDM, *fields(method="em_mmps")), "start"),
        Job("warm from EM-MMPS", (*base, *fields(start__checkpoint="{before}")), "start", before="EM-MMPS"),
    ]
    for name, flags in (("posterior", ()), ("published denoiser", EDM)):
        out += [
            Job(f"{name}, {carry}", (*base, *flags, *fields(m_step__carry=carry)), "carried over")
            for carry in ("all", "params", "nothing")
        ]
    true = fields(
        data_corruption__name="pixel_mask", data_corruption__rate=0.5, data_corruption__noise_std=0.01
    )  # of the data, whatever rate the method assumes
    out += [
        Job(f"{rate:.2f}", (*base, *true, *fields(corruption__rate=rate)), "assumed rate (true 0.50)")
        for rate in (0.4, 0.45, 0.5, 0.55, 0.6)
    ]
    out += [Job(str(std), (*base, *fields(corruption__noise_std=std)), "noise") for std in (0.001, 0.01, 0.1, 0.2, 0.4)]
    jpeg = tuple(flag.replace("--config=digits", "--config=digits:jpeg") for flag in base)
    out.append(Job("JPEG quality 20", jpeg, "not linear"))
    # Recall is the share of truths near some draw: it falls where training on one's own draws loses variety.
    many = fields(eval__metrics="('psnr','features_recall','features_precision','sliced_wasserstein_unpaired')")
    many += fields(rounds=6 if quick else 30, m_step__steps=100 if quick else 300)
    out.append(Job("30 rounds", (*base, *many), "rounds"))
    return out


COLUMNS = {
    "psnr": "PSNR, dB",
    "accuracy": "accuracy",
    "sliced_wasserstein_unpaired": "sliced Wasserstein, unpaired",
    "posterior_spread": "spread of the posterior",
    "coverage_90": "coverage of 90%",
    "crps": "CRPS",
}


def report(rows: list[Row], quick: bool) -> None:
    """One table per question, and figures of the rounds."""
    parts = [f"Last round, {common.seeds_of(rows)}."]
    for group in dict.fromkeys(row["group"] for row in rows):
        lines = [
            {**row, "what": title, "value": common.last(row, metric)}
            for metric, title in COLUMNS.items()
            for row in rows
            if row["group"] == group
        ]
        parts.append(f"### {group}\n\n{common.table(lines, lambda r: r['value'], across='what')}")
    end = "_quick" if quick else ""
    parts.append(f"![Sampler steps, noise, assumed rate](settings{end}.png)\n\n![Over rounds](rounds{end}.png)")
    common.write_readme(NAME, "\n\n".join(parts), quick)
    place = common.ROOT / "experiments" / NAME
    seeds = sorted({row["seed"] for row in rows})

    def setting(group: str, metric: str) -> dict[str, list[list[tuple[float, float]]]]:
        found = [
            [
                (float(row["method"]), value)
                for row in rows
                if row["group"] == group and row["seed"] == seed and (value := common.last(row, metric)) is not None
            ]
            for seed in seeds
        ]
        return {"DiffEM": found} if found and all(found) else {}

    panels = [
        figures.Panel(lines, group, metric, log_x=group != "assumed rate (true 0.50)")
        for group in ("sampler steps", "noise", "assumed rate (true 0.50)")
        for metric in ("psnr", "coverage_90")
        if (lines := setting(group, metric))
    ]
    if panels:
        figures.draw(place / f"settings{end}.png", panels, columns=2)
    panels = []
    for group in ("start", "carried over", "rounds"):
        chosen = [row for row in rows if row["group"] == group]
        for metric in ("psnr", "sliced_wasserstein_unpaired", "features_recall", "features_precision"):
            if not chosen or metric not in chosen[0]["rounds"][0]:
                continue
            curves = {
                method: [[(r["round"], r[metric]) for r in row["rounds"]] for row in chosen if row["method"] == method]
                for method in dict.fromkeys(row["method"] for row in chosen)
            }
            if curves:
                panels.append(figures.Panel(curves, f"round ({group})", metric.replace("_", " ")))
    if panels:
        figures.draw(place / f"rounds{end}.png", panels, columns=2)


def main() -> None:
    common.main(NAME, __doc__ or "", jobs, report)


if __name__ == "__main__":
    main()
