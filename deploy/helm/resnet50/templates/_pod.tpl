{{- /* Parts of pods that the Deployment and the Job share. */ -}}

{{- define "resnet50.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end -}}

{{- /* A probe. Arguments: root, name (startup …), service of gRPC health, path on the metrics port. */ -}}
{{- define "resnet50.probe" -}}
{{- if .root.Values.tls.secretName }}
# gRPC probes cannot use TLS.
httpGet:
  path: {{ .path }}
  port: metrics
{{- else }}
grpc:
  port: 50051
  service: {{ .service }}
{{- end }}
{{- with index .root.Values.probes .name }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The variants file, in JSON. */ -}}
{{- define "resnet50.variantsFile" -}}
{{- $file := fromToml .Values.variantsFile -}}
{{- with $file.Error }}{{ fail (print "variantsFile: is not TOML: " .) }}{{ end -}}
{{- if not $file.variant }}{{ fail "variantsFile: declare at least one [[variant]]" }}{{ end -}}
{{ toJson $file }}
{{- end -}}

{{- /* The official weights to download, as a list in JSON. */ -}}
{{- define "resnet50.downloads" -}}
{{- $names := .Values.weights.download -}}
{{- if $names -}}
{{- else if .Values.variantsFile -}}
{{- range (include "resnet50.variantsFile" . | fromJson).variant -}}
{{- if not (or (hasKey . "directory") (hasKey . "seed")) }}{{ $names = append $names .name }}{{ end -}}
{{- end -}}
{{- else -}}
{{- range .Values.variants }}{{ if not (contains "=" .) }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- end -}}
{{ toJson $names }}
{{- end -}}

{{- /* The container that downloads weights. */ -}}
{{- define "resnet50.fetch" -}}
name: fetch-weights
image: {{ include "resnet50.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: {{ concat (list "variants" "download") (include "resnet50.downloads" . | fromJsonArray) | toJson }}
env:
  - name: TORCH_HOME
    value: {{ .Values.weights.path | quote }}
  - name: HOME
    value: /tmp
resources:
  requests:
    cpu: 100m
    memory: 512Mi
  limits:
    memory: 1Gi
securityContext:
  {{- include "resnet50.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: weights
    mountPath: {{ .Values.weights.path }}
  - name: tmp
    mountPath: /tmp
{{- end -}}

{{- define "resnet50.claim" -}}
{{ .Values.weights.persistentVolumeClaim.existingClaim | default (print (include "resnet50.service" .) "-weights") }}
{{- end -}}
