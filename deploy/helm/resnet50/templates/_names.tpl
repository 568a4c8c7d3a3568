{{- /* Names and labels. */ -}}

{{- define "resnet50.service" -}}
{{ .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}

{{- define "resnet50.server" -}}
{{ include "resnet50.service" . }}-server
{{- end -}}

{{- define "resnet50.clusterIP" -}}
{{ include "resnet50.service" . }}-cluster-ip
{{- end -}}

{{- define "resnet50.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "resnet50.server" .) "default" .Values.serviceAccount.create) }}
{{- end -}}

{{- define "resnet50.image" -}}
{{- $tag := .Values.image.tag | default (print .Chart.AppVersion (ternary "-cuda" "" .Values.gpu.enabled)) -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}

{{- /* Labels by which selectors find the servers. */ -}}
{{- define "resnet50.selector" -}}
app.kubernetes.io/name: resnet50-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* Labels of every object that is no pod. */ -}}
{{- define "resnet50.labels" -}}
app.kubernetes.io/name: resnet50-server
{{ include "resnet50.release" . }}
{{- end -}}

{{- define "resnet50.release" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: resnet50
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
