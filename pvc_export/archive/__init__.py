"""A folder of videos to a table of answers: `pvc-export batch`.

job.py says what is asked and finds the videos, answering.py answers about one, workers.py does so in several processes
and on_ray.py on the machines of a Ray cluster, table.py keeps the rows. Only the process that was started writes rows.
"""
