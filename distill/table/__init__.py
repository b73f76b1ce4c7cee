"""The honest table: every objective and every knob at one budget, judged alike, beside what was predicted."""
