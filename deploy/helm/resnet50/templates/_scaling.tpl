{{- /* Pace of both autoscalers. */ -}}
{{- define "resnet50.scaling" -}}
scaleUp:
  # The queue age rises steeply near capacity: it shows that pods are missing, not how many.
  stabilizationWindowSeconds: 0
  policies:
    - type: Pods
      value: 2
      periodSeconds: 60
scaleDown:
  stabilizationWindowSeconds: 600
  policies:
    - type: Pods
      value: 1
      periodSeconds: 120
{{- end -}}
