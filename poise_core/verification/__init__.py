"""The admission gate: candidate code is proved fit before it trains, in a confined process."""

from poise_core.verification.report import CheckResult, VerificationReport
from poise_core.verification.verify import verify_file

__all__ = ["CheckResult", "VerificationReport", "verify_file"]
