"""What rankings and codes are worth: functions of arrays, numpy only."""
