"""The gates of a candidate: one pure function from evidence and a policy to a decision with reasons.

A gate that lacks a number, meets one that is not finite, or would compare what cannot be compared is `not_decidable`; only a measured
value on the right side of its threshold is a pass. What is known from a sample of queries is decided on by the end of an interval:
comparisons use the paired bootstrap over the units that the queries were drawn in. `gate_quality`, `gate_champion` and `gate_soundness`
hold the gates themselves.
"""

from __future__ import annotations

from components.gates.champion import champion_gates
from components.gates.config import PolicyConfig
from components.gates.decision import Evidence as Evidence
from components.gates.decision import GateDecision as GateDecision
from components.gates.decision import GateResult as GateResult
from components.gates.decision import Status as Status
from components.gates.decision import Verdict as Verdict
from components.gates.gate_inputs import input_digests
from components.gates.policy import policy_digest
from components.gates.quality import quality_gates
from components.gates.soundness import soundness_gates


def decide(evidence: Evidence, policy: PolicyConfig) -> GateDecision:
    """Hold a candidate's evidence against the policy; pure, raises nothing for bad measurements.

    The verdict is `fail` if any gate fails, else `not_decidable` if any gate is, else `pass`. The same evidence and policy always give
    the same decision, which names both by their digests.
    """
    gates = (*quality_gates(evidence.report, policy), *champion_gates(evidence, policy), *soundness_gates(evidence, policy))
    statuses = {gate.status for gate in gates}
    verdict: Verdict = "fail" if "fail" in statuses else "not_decidable" if "not_decidable" in statuses else "pass"
    return GateDecision(
        verdict=verdict,
        first_release=evidence.baseline is None and not evidence.lost,
        gates=gates,
        policy_version=policy.version,
        policy_digest=policy_digest(policy),
        inputs=input_digests(evidence),
    )
